"""The page: what visitors see and click. Nothing imports this but app.py; only build.py and the tabs know gradio."""
