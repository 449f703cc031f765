import os

if "PYTEST_XDIST_WORKER" in os.environ:      # processes side by side: threads of torch and BLAS would wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")
