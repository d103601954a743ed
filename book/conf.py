"""Sphinx settings. Nothing here may make a page load anything from a network."""

project = "The Negative Term"
author = "The guidance_edu authors"
copyright = "2026, the guidance_edu authors"
extensions = ["myst_nb", "sphinx_copybutton"]
exclude_patterns = ["_build"]
suppress_warnings = ["myst.header"]  # a chapter's solution may skip a heading level

nb_execution_mode = "off"
nb_render_markdown_format = "gfm"
myst_enable_extensions = ["dollarmath", "amsmath", "alert", "colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "sphinx_book_theme"
html_title = project
html_favicon = "_static/favicon.svg"
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_copy_source = True
html_show_sphinx = False
html_context = {"default_mode": "auto"}
mathjax_path = "mathjax/tex-svg.js"  # 3.2.2 in one file; 4 loads parts from a network
mathjax3_config = {"svg": {"fontCache": "global"}, "options": {"enableMenu": False}}
html_theme_options = {
    "navbar_persistent": [],  # else a second search field stands above the page
    "use_download_button": True,
    "use_fullscreen_button": False,
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "extra_footer": "Every number in this book is checked whenever its chapter runs.",
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
