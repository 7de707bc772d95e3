"""Worker processes: claiming jobs, running them, and recording how they ended."""
