"""What every floor may use: checks of arguments, files' digests, child processes, facts about the machine."""
