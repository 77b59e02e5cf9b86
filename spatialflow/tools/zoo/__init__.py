"""The table of the model zoo: every config with its published and measured numbers."""
