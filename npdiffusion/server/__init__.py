"""A server on this machine: a page, and interfaces that other programs speak. `npdiffusion serve` starts it.

    request in JSON → settings.Request → a job in the queue → jobs/render.py → picture

    app.py         all routes together                 guard.py       who may ask, and how much
    engine.py      the one who makes the pictures      queue.py       whose turn it is, what is ahead
    job.py         what is known of a request's way    store.py       jobs on disk, which outlive the server
    gallery.py     the pictures that are kept          catalogue.py   models, LoRAs and words, by name alone
    jobs_api.py    /api, our own, for the page         sdapi.py       /sdapi/v1, AUTOMATIC1111's
    openai_api.py  /v1, OpenAI's                       sdapi_fields.py   what its requests ask for
    slow_answers.py   those that take long             sdapi_progress.py   how far they are
    reading.py     JSON, pictures, settings in files   notes.py       warnings, for the one whom they concern
    limits.py      how much is taken                   looking.py     what a picture looked at
    leading.py     ControlNets and the like           sdapi_control.py   in AUTOMATIC1111's requests
    openapi.py     a description of all that can be asked for

Nothing here prints. Starlette, uvicorn and python-multipart are the extra "serve".
"""
