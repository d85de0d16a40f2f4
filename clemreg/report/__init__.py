"""The accuracy report: one HTML file for people, one JSON file for scripts."""
