"""The server: the engine behind the interfaces of OpenAI, Anthropic and TGI, and the chat page.

The way of a request:

1. `ops` is around everything: ids and logs, keys, limits, bodies, metrics, traces. Its `stack` has the order.
2. A route reads the body of its interface: `openai`, `anthropic`, `tgi`, `clouds`, `tokenize`, `adapters`,
   `health`. A dialog becomes a `chat_task.ChatTask`.
3. `service` has the engine take it on, as a `running.RunningRequest`, which tells an `observer` what happens.
4. `answers` makes one stream of the engine's events and of the calls in its text. The interface writes that
   down, whole or as an event stream (`sse`); errors have its shape, too (`errors`).

`app` has all routes, `page` is the chat page, and `corral.cli.serve` puts everything together.
"""
