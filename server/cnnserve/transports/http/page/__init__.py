"""The page at `/`: its files, the routes of its data, and the stream of measurements."""
