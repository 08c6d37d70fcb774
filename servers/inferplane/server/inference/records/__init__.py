"""What a prediction leaves behind: notes taken while a call ends, and their delivery to Reporting."""
