"""What people run: command line, benchmark, demo."""
