"""The Gradio app: calls circuitsae and shows what it gives. `python -m gradio_app` starts it."""
