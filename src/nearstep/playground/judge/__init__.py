"""The playground's judge: finds what a clip shows by fitting and redrawing it; compares it with a caption."""
