"""What a run leaves behind: names of files, atomic writes, identity, state, rows."""
