"""A look at one picture as one HTML file: no network, no framework, opens from a mail.

    page.py       the file: page.html with style.css, script.js, pictures and numbers inside
    contents.py   the numbers and pictures that the script shows, as JSON
    drawing.py    the UNet as a drawing, with the shapes on the way
    lab_page.py   the laboratory for samplers, with lab.css

Texts of users are escaped where they stand in HTML, and set as text by the script; a policy inside the file forbids
every request.
"""
from npdiffusion.study.report.page import page

__all__ = ["page"]
