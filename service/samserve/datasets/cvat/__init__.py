"""CVAT's own format "CVAT for images 1.1": XML of the shapes in the images of a task."""
