"""The chat page: a Gradio page, mounted in the server, that talks to the server's own HTTP API.

`corral.server.page.mount.mount_page` puts it into an application. Gradio is imported when it is first opened.
"""
