"""What is measured side by side; each file says its command at its top."""
