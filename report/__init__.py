"""The experiments behind every comparison that the Readme makes: what is asked, what is run, and what came of it."""
