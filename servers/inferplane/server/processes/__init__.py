"""The processes of an installation: workers, who supervises them, and the parts that `up` runs beside them."""
