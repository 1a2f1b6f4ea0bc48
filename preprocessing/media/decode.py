"""Frames of a file in the order they are shown, one at a time."""

from collections.abc import Iterator
from typing import Any, Final

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.video.stream import VideoStream

from preprocessing.errors import MediaError
from preprocessing.media.containers import MAX_VIDEO_PIXELS, too_large
from preprocessing.media.deinterlace import deinterlaced
from preprocessing.names import short

_ALPHA_DECODERS: Final = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""FFmpeg's own VP8 and VP9 decoders drop the alpha plane; libvpx's give it."""

_COVER_ART: Final = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails


def video_stream(
    container: InputContainer, name: str, max_pixels: int = MAX_VIDEO_PIXELS
) -> VideoStream:
    """The clip's picture: FFmpeg's choice among the streams that are no cover art.

    Raises `MediaError` where there is none. The decoder is set to one thread: clips are prepared
    by one process per core, which is faster than threads (`reliability.md` 5.2) and holds fewer
    frames.
    """
    streams = [
        stream
        for stream in container.streams.video
        if not stream.disposition & _COVER_ART and stream.codec_context is not None
    ]
    if not streams:
        raise MediaError(
            f"{short(name)} has no video, only sound or a cover picture, or one in a codec that "
            "is not known here.",
            reason="no_video",
        )
    best = container.streams.best("video")
    stream = next((one for one in streams if best and one.index == best.index), streams[0])
    stream.thread_type = "NONE"
    stream.thread_count = 1
    stream.codec_context.options = {"max_pixels": str(max_pixels)}
    return stream


def sound_stream(container: InputContainer) -> AudioStream | None:
    """The clip's sound: FFmpeg's choice. None where there is none, or none that can be decoded."""
    stream = container.streams.best("audio")
    if not isinstance(stream, AudioStream) or stream.codec_context is None:
        return None
    return stream


class FrameDecoder:
    """A stream's decoder that skips what is damaged and refuses what is too large."""

    def __init__(self, stream: VideoStream, name: str) -> None:
        self._name = name
        self._decoder = _decoder(stream)
        self._max_pixels = int(stream.codec_context.options["max_pixels"])
        # Taken now: a decoder that refuses a size forgets it.
        self._claimed = stream.width, stream.height

    def decode(self, packet: Any) -> list[av.VideoFrame]:
        """The frames that ``packet`` completes; after the last packet, None gives the rest.

        A packet that does not decode gives none, as in players; who needs its frame notices that
        it is missing. Raises `MediaError` when the picture is above the cap of `video_stream`.
        """
        width, height = self._claimed
        try:
            return self._decoder.decode(packet)
        except av.error.InvalidDataError:
            return []
        except av.error.ArgumentError as error:
            # FFmpeg's answer to a picture above max_pixels; other causes stay what they are.
            if width * height > self._max_pixels:
                raise too_large(self._name, width, height, self._max_pixels) from error
            raise


def decoded(
    container: InputContainer, stream: VideoStream, name: str, *, deinterlace: bool = True
) -> Iterator[av.VideoFrame]:
    """Decode from where the container stands to its end, in presentation order."""
    decoder = FrameDecoder(stream, name)
    frames = (frame for packet in packets(container, stream) for frame in decoder.decode(packet))
    return deinterlaced(frames) if deinterlace else frames


def decoded_sound(container: InputContainer, stream: AudioStream) -> Iterator[av.AudioFrame]:
    """Decode sound from where the container stands to its end, skipping what is damaged."""
    for packet in packets(container, stream):
        try:
            yield from stream.codec_context.decode(packet)
        except av.error.InvalidDataError:
            continue


def packets(container: InputContainer, *streams: AudioStream | VideoStream) -> Iterator[Any]:
    """All packets and, last, the None that makes a decoder give what it still holds."""
    try:
        for packet in container.demux(streams):
            if packet.size:
                yield packet
    except av.error.InvalidDataError:
        pass  # A broken or cut off container ends here.
    yield None


def _decoder(stream: VideoStream) -> av.VideoCodecContext:
    codec = stream.codec_context.name
    if stream.metadata.get("alpha_mode") != "1" or codec not in _ALPHA_DECODERS:
        return stream.codec_context
    decoder = av.CodecContext.create(_ALPHA_DECODERS[codec], "r")
    assert isinstance(decoder, av.VideoCodecContext), "asked for a video codec"
    decoder.thread_count = 1
    decoder.options = dict(stream.codec_context.options)
    return decoder
