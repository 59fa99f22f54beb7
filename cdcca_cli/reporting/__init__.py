"""`cdcca report`: one page to look at, from what rounds or a fleet leave.

folders, files            -> found      which file of a folder is what
found                     -> gather     everything that the page shows, as one JSON object
   scored, examples, maps, training, link, entropy: a section each
   frames, plain: pictures and labels by name; other people's text and numbers
that object               -> page       HTML, by the template page.html
   figures: charts as inline SVG
"""
