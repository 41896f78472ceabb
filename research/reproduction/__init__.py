"""The paper's claims made again in the miniature: training runs, measurements, and the page they end in."""
