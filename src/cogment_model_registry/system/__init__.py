"""What the system gives: tasks, shared memory budgets, locks between processes, files that are replaced whole."""
