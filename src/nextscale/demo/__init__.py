"""The local web page: the same seeds without and with SSG, side by side. Only this part knows gradio."""
