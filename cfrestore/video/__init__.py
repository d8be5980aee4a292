"""Restores the faces of videos: found in all frames, followed, painted, and coded again.

    file -> frames -finding, tracks-> Plan -restoration, coding-> segments -container-> file

Needs PyAV, the extra `video`, in all but `tracks`.
"""
