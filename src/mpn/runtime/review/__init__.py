"""Write a page that shows where a run may be wrong, as one HTML file."""
