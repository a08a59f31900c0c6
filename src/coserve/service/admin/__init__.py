"""Administration: /v1/organization in the shape of OpenAI's, for keys with the scope `admin`.

Objects have OpenAI's fields and coserve's own beside them (`tier`, `weight`, `budget`, ...). Every change has its row
in the audit log, and counts before its reply is sent.
"""
