"""How Alembic runs the migrations: on the connection from `upgrade`, in its transaction."""

from alembic import context

from coserve.service.tables import Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
