"""Every error a caller of Pilotfish may catch. Each message names the thing, the limit and the way out."""


class PilotfishError(Exception):
    """Anything Pilotfish refuses to do, with a message meant for the person at the keyboard."""


class PilotfishWarning(RuntimeWarning):
    """Something went otherwise than it should, and Pilotfish goes on; the message says how."""


class ModelNotFoundError(PilotfishError):
    """No model under this name or path."""


class ModelFileError(PilotfishError):
    """A model file is truncated, damaged, foreign, or not what its digest says."""


class UnsupportedModelError(PilotfishError):
    """A sound file whose architecture, tokenizer or tensor type Pilotfish cannot run yet."""


class UnknownFamilyError(UnsupportedModelError):
    """A Hugging Face folder of a family that is not opened as it lies there.

    family: its model_type. Whether it can be exported is added to the message by what knows that (pilotfish.loading).
    """

    def __init__(self, message: str, family: str) -> None:
        super().__init__(message)
        self.family = family


class EngineMissingError(PilotfishError):
    """The engine asked for is not installed; the message holds the command that adds it."""


class EngineError(PilotfishError):
    """An engine failed at something it claims to do, or gave a wrong answer to the canary."""


class NoMemoryError(EngineError):
    """There is no memory for what an answer needs; the message says for what, and how to do with less."""


class NotFiniteError(EngineError):
    """Logits that are NaN or infinite: the weights are damaged, or the engine fails at them."""


class DamagedWeightsError(EngineError):
    """Weights with a value that is not a number, which no engine can answer with; the message names the tensor."""


class AbilityError(PilotfishError):
    """This engine cannot do what was asked; the message names the engine that can.

    engine, missing: the engine, and the abilities that it lacks; empty where the message says all there is to say. Who
    has them is added to the message by what knows engines (with_way_out in pilotfish.loading).
    """

    def __init__(self, message: str, *, engine: str = "", missing: frozenset[str] = frozenset()) -> None:
        super().__init__(message)
        self.engine, self.missing = engine, missing


class ContextFullError(PilotfishError):
    """The tokens do not fit into the session. Raised before anything changes."""


class OptionError(PilotfishError):
    """An option has an impossible value, or two options contradict each other."""


class ChatTemplateError(PilotfishError):
    """The model's chat template failed, ran too long, or refused these messages."""


class DownloadError(PilotfishError):
    """A model could not be fetched: no network, no such file, or a wrong digest."""


class CacheWriteError(PilotfishError):
    """A cache folder could not be written, for example because the disk is full. Nothing half-written stays."""


class ParityError(PilotfishError):
    """An export is further from its source than its thresholds allow, and was not kept."""
