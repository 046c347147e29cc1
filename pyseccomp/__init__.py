"""Seccomp filters as objects."""

# ---- notifications
from pyseccomp.notify import Notification as Notification, Receiver as Receiver
from pyseccomp.responder import (
    Answer as Answer,
    Responder as Responder,
    ResponderStats as ResponderStats,
    allow as allow,
    deny as deny,
    hold as hold,
    kill as kill,
    reply as reply,
)
