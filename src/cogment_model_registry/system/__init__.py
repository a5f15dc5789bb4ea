"""Small parts on top of the operating system: tasks, memory budgets, file locks, files that are replaced as a whole."""
