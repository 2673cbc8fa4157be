"""Write masks in each annotation format, and read them with the programs' packages."""
