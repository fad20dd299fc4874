"""An audit arranged for reading, and laid out as markdown, HTML, SARIF or on a terminal."""
