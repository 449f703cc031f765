"""How far a picture is, for programs that speak AUTOMATIC1111's interface, and how to end it.

    GET  /sdapi/v1/progress       the picture at work, whoever asked for it
    POST /sdapi/v1/interrupt, /sdapi/v1/skip      end it, or go on with the next one of its request
    POST /internal/progress       {"id_task": …}: the request that its client called so in force_task_id
    GET  /internal/pending-tasks  what waits

`interrupt` and `skip` are for the picture at work if it came by this interface, as there; jobs of the page and of others go on.
"""
import time

from starlette.responses import JSONResponse

from npdiffusion.server import reading
from npdiffusion.server.job import QUEUED, RUNNING
from npdiffusion.server.reading import apart
from npdiffusion.server.sdapi_fields import NAME


def stamp(seconds):
    return time.strftime("%Y%m%d%H%M%S", time.localtime(seconds))


def done(job):
    """What share of a job is made"""
    return min((job.number + (job.step / job.steps if job.steps else 0)) / job.count, 1.0)


async def progress(request):
    """The picture at work, whoever asked for it"""
    engine, skip = request.app.state.engine, request.query_params.get("skip_current_image", "").lower() in ("true", "1")
    job, waiting = engine.now, len(engine.turns)
    image = None if job is None or skip else await apart(engine.preview, job)
    left = engine.outlook(job)[1] if job else 0.0
    state = {"skipped": bool(job and job.skipped), "interrupted": bool(job and job.unwanted), "stopping_generation": False,
             "job": f"Batch {job.number + 1} out of {job.count}" if job else "", "job_count": job.count if job else waiting,
             "job_timestamp": stamp(job.created) if job else "0", "job_no": job.number if job else 0,
             "sampling_step": job.step if job else 0, "sampling_steps": job.steps if job else 0}
    return JSONResponse({"progress": done(job) if job else 0.0, "eta_relative": left, "state": state, "textinfo": None,
                         "current_image": image and reading.encoded(image, compress_level=1)})


async def interrupt(request):
    engine = request.app.state.engine
    if engine.now is not None and engine.now.api == NAME:
        await apart(engine.cancel, engine.now)
    return JSONResponse({})


async def skip(request):
    engine = request.app.state.engine
    if engine.now is not None and engine.now.api == NAME:
        engine.skip(engine.now)
    return JSONResponse({})


async def internal_progress(request):
    """How far one request is; its picture only if that is another than the client has (id_live_preview)"""
    found, engine = await reading.an_object(request), request.app.state.engine
    job = engine.called(str(found.get("id_task")))
    answer = {"active": bool(job) and job.state == RUNNING, "queued": bool(job) and job.state == QUEUED,
              "completed": bool(job) and job.over, "progress": None, "eta": None, "live_preview": None, "id_live_preview": -1,
              "textinfo": None}
    if answer["queued"]:
        answer["textinfo"] = f"In queue: {engine.outlook(job)[0]} ahead"
    elif answer["active"]:
        answer |= {"progress": done(job), "eta": engine.outlook(job)[1], "id_live_preview": job.number * 1000 + job.step}
        if found.get("live_preview", True) and found.get("id_live_preview") != answer["id_live_preview"]:
            image = await apart(engine.preview, job)
            answer["live_preview"] = image and "data:image/png;base64," + reading.encoded(image, compress_level=1)
    else:
        answer["textinfo"] = "Waiting..."
    return JSONResponse(answer)


async def pending_tasks(request):
    """What requests that wait are called"""
    tasks = [job.task or job.id for job in request.app.state.engine.active() if job.state == QUEUED]
    return JSONResponse({"size": len(tasks), "tasks": tasks})
