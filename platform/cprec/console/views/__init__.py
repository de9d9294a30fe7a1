"""Views: how runs and models stand, as plain data for a page. Pure."""
