"""Tables and charts, as HTML, Markdown or in a terminal: what every command shows its results with."""
