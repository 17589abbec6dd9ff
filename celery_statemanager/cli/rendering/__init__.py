"""What commands print: lines for programs, lines for people, and the live picture."""
