"""`cdcca infer`: frames to predictions."""

from cdcca_cli import progress, streams
from cdcca_cli.config import Runtime
from cdcca_cli.options import Device, Images, LiveOperand, Output, Prompt, Quiet, Strict, Task
from cdcca_cli.uplink.settings import AnswerSettings, CaptureSettings, ServedSettings


def command(
    *,
    frames: LiveOperand,
    device: Device = None,
    strict: Strict = False,
    prompt: Prompt = None,
    task: Task = None,
    images: Images = None,
    how: AnswerSettings,
    at: ServedSettings,
    take: CaptureSettings,
    on: Runtime,
    output: Output = None,
    quiet: Quiet = False,
) -> None:
    """Answer the questions about each frame, with the certainty of each answer.

    Predictions are JSON lines, one per question, in the order of the frames: a free answer, the
    entropy of its tokens in nats, and for a question with choices the likelihood of each of them.
    A frame that cannot be read is named and left out. A camera or stream is answered as it comes,
    the newest frame each time, until --duration has passed or Ctrl-C ends it; exit code 0.

    Example: cdcca infer frames/ -m device/ --prompt 'What is on the road?' | jq .answer
    \f

    With --server a running llama-server, or another OpenAI-compatible server, answers with the
    device's model, and nothing is loaded here; entropies are then of the 20 likeliest tokens of
    each step, with the rest spread flat over the vocabulary.
    """
    streams.set_quiet(quiet)
    from cdcca_cli import config
    from cdcca_cli.datasets import LiveFrames, num_frames, open_frames
    from cdcca_cli.formats.predictions import encode_line
    from cdcca_cli.skipped import Skipped
    from cdcca_cli.text import counted

    source = open_frames(
        frames,
        images=images,
        prompt=prompt,
        task=task,
        every=take.every,
        duration=take.duration,
    )
    skipped = Skipped(strict=strict or num_frames(source) == 1)
    tracked = progress.track(source, description="infer")
    if at.server is not None:
        from cdcca_cli.uplink import served

        server = served.open_served(at, config.device(device))
        is_live = isinstance(source, LiveFrames)
        predictions = served.answer_frames(server, tracked, how, skipped, is_live=is_live)
    else:
        on.set_threads()
        from cdcca_cli.models import load_device
        from cdcca_cli.uplink.answers import answer_frames

        model = load_device(config.device(device), compute=on.compute, dtype=on.dtype)
        predictions = answer_frames(model, tracked, how, skipped)
    with streams.text_output(output) as out:
        for prediction in predictions:
            out.write(encode_line(prediction))
            out.flush()  # the reader of the pipe gets each answer at once
        skipped.refuse_if_all()
    streams.summary(
        f"{counted(skipped.num_sound, 'question')} answered about "
        f"{counted(num_frames(source) or 0, 'frame')}{skipped}"
    )
