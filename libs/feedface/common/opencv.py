"""OpenCV, which is installed in two builds of which one fails on servers."""

from feedface.common.errors import UserError


def import_cv2():
    """OpenCV, or a `UserError` where its build with windows finds no libGL, as on most servers, or there is none."""
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            f"OpenCV cannot be loaded ({error}); the build without windows needs less: pip uninstall -y opencv-python, "
            "then pip install --force-reinstall --no-deps opencv-python-headless in the version of requirements.txt"
        ) from None
    return cv2
