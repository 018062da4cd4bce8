"""What a run tells: observers, the terminal, and the HTML page."""
