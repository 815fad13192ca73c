"""Small helpers on the ground floor: logging of metrics, progress display, schedules, files."""
