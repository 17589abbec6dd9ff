"""Integration with Django: states in its databases, submission in its transactions, admin pages."""
