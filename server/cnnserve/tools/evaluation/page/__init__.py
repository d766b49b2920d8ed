"""The findings as one HTML file that needs no other file and no script: `document` builds it from the other modules."""
