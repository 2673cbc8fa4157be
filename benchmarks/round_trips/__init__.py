"""Write masks as annotations, and read them with the programs' packages."""
