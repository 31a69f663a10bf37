"""Records to pictures and pages: boxes on images, and HTML that needs no network."""
