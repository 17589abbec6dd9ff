"""Parts for other frameworks. Each is imported by the projects that use its framework, and by nothing else."""
