"""Reference pages made from the code; each module's `page` gives the Markdown of one."""
