"""Settings, methods and students chosen without test images."""
