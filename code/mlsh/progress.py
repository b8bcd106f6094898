"""Progress bars."""

from tqdm import tqdm


def progress_bar(total, description, unit="it", initial=0):
    bar = {"unit": unit, "unit_scale": True, "dynamic_ncols": True, "leave": False}
    return tqdm(total=total, desc=description, initial=initial, **bar)
