"""`config.pbtxt` and the settings that follow from it. May import `images` and the packages below it."""
