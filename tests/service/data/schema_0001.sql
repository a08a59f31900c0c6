-- A database as coserve's schema 0001 left it, with a row in each table that later schemas change.
BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0002');
CREATE TABLE audit (
	seq INTEGER NOT NULL, 
	id VARCHAR(64) NOT NULL, 
	created_at BIGINT NOT NULL, 
	actor VARCHAR(200) NOT NULL, 
	type VARCHAR(64) NOT NULL, 
	object_id VARCHAR(64) NOT NULL, 
	data JSON NOT NULL, 
	PRIMARY KEY (seq), 
	UNIQUE (id)
);
CREATE TABLE batches (
	seq INTEGER NOT NULL, 
	id VARCHAR(64) NOT NULL, 
	project_id VARCHAR(64) NOT NULL, 
	key_id VARCHAR(64) NOT NULL, 
	endpoint VARCHAR(64) NOT NULL, 
	input_file VARCHAR(64) NOT NULL, 
	output_file VARCHAR(64), 
	error_file VARCHAR(64), 
	status VARCHAR(32) NOT NULL, 
	window BIGINT NOT NULL, 
	created_at BIGINT NOT NULL, 
	times JSON NOT NULL, 
	total BIGINT NOT NULL, 
	completed BIGINT NOT NULL, 
	failed BIGINT NOT NULL, 
	errors JSON, 
	labels JSON, 
	PRIMARY KEY (seq), 
	UNIQUE (id)
);
CREATE TABLE chip_hours (
	hour BIGINT NOT NULL, 
	chip VARCHAR(200) NOT NULL, 
	inference_seconds FLOAT NOT NULL, 
	training_seconds FLOAT NOT NULL, 
	idle_seconds FLOAT NOT NULL, 
	price BIGINT NOT NULL, 
	PRIMARY KEY (hour, chip)
);
CREATE TABLE files (
	seq INTEGER NOT NULL, 
	id VARCHAR(64) NOT NULL, 
	filename TEXT NOT NULL, 
	purpose VARCHAR(64) NOT NULL, 
	bytes BIGINT NOT NULL, 
	created_at BIGINT NOT NULL, project_id VARCHAR(64) DEFAULT 'proj-default' NOT NULL, 
	PRIMARY KEY (seq), 
	UNIQUE (id)
);
INSERT INTO "files" VALUES(1,'file-1','a.jsonl','fine-tune',3,1760000000,'proj-default');
CREATE TABLE job_checkpoints (
	seq INTEGER NOT NULL, 
	id VARCHAR(64) NOT NULL, 
	job_id VARCHAR(64) NOT NULL, 
	created_at BIGINT NOT NULL, 
	step BIGINT NOT NULL, 
	metrics JSON NOT NULL, 
	PRIMARY KEY (seq), 
	UNIQUE (job_id, step), 
	UNIQUE (id), 
	FOREIGN KEY(job_id) REFERENCES jobs (id)
);
CREATE TABLE job_events (
	seq INTEGER NOT NULL, 
	id VARCHAR(64) NOT NULL, 
	job_id VARCHAR(64) NOT NULL, 
	created_at BIGINT NOT NULL, 
	level VARCHAR(16) NOT NULL, 
	type VARCHAR(16) NOT NULL, 
	message TEXT NOT NULL, 
	data JSON NOT NULL, 
	PRIMARY KEY (seq), 
	UNIQUE (id), 
	FOREIGN KEY(job_id) REFERENCES jobs (id)
);
INSERT INTO "job_events" VALUES(1,'e1','ftjob-1',1760000000,'info','message','Created','{}');
CREATE TABLE jobs (
	seq INTEGER NOT NULL, 
	id VARCHAR(64) NOT NULL, 
	created_at BIGINT NOT NULL, 
	finished_at BIGINT, 
	estimated_finish BIGINT, 
	status VARCHAR(32) NOT NULL, 
	model TEXT NOT NULL, 
	suffix VARCHAR(64), 
	seed BIGINT NOT NULL, 
	hyperparameters JSON NOT NULL, 
	training_file VARCHAR(64) NOT NULL, 
	validation_file VARCHAR(64), 
	fine_tuned_model TEXT NOT NULL, 
	adapter_path TEXT, 
	model_deleted_at BIGINT, 
	trained_tokens BIGINT NOT NULL, 
	result_files JSON NOT NULL, 
	error JSON, 
	labels JSON, project_id VARCHAR(64) DEFAULT 'proj-default' NOT NULL, key_id VARCHAR(64) DEFAULT '' NOT NULL, 
	PRIMARY KEY (seq), 
	UNIQUE (id), 
	UNIQUE (fine_tuned_model)
);
INSERT INTO "jobs" VALUES(1,'ftjob-1',1760000000,NULL,NULL,'succeeded','builtin',NULL,1,'{}','file-1',NULL,'ft:builtin:x',NULL,NULL,10,'[]',NULL,NULL,'proj-default','');
CREATE TABLE "keys" (
	seq INTEGER NOT NULL, 
	id VARCHAR(64) NOT NULL, 
	name VARCHAR(200) NOT NULL, 
	prefix VARCHAR(32) NOT NULL, 
	hash VARCHAR(64) NOT NULL, 
	created_at BIGINT NOT NULL, 
	revoked_at BIGINT, 
	project_id VARCHAR(64) DEFAULT 'proj-default' NOT NULL, 
	tier VARCHAR(64), 
	up_to VARCHAR(64), 
	scopes JSON DEFAULT '["all"]' NOT NULL, 
	models JSON, 
	expires_at BIGINT, 
	PRIMARY KEY (seq), 
	CONSTRAINT fk_keys_project FOREIGN KEY(project_id) REFERENCES projects (id), 
	UNIQUE (id), 
	UNIQUE (hash)
);
INSERT INTO "keys" VALUES(1,'key-1','first','sk-cs-abcd','00',1760000000,NULL,'proj-default',NULL,NULL,'["all"]',NULL,NULL);
CREATE TABLE projects (
	seq INTEGER NOT NULL, 
	id VARCHAR(64) NOT NULL, 
	name VARCHAR(200) NOT NULL, 
	tier VARCHAR(64), 
	weight FLOAT NOT NULL, 
	budget BIGINT, 
	limits JSON NOT NULL, 
	created_at BIGINT NOT NULL, 
	archived_at BIGINT, 
	PRIMARY KEY (seq), 
	UNIQUE (id)
);
INSERT INTO "projects" VALUES(1,'proj-default','Default',NULL,1.0,NULL,'{}',1795541339,NULL);
CREATE TABLE usage (
	id VARCHAR(64) NOT NULL, 
	created_at BIGINT NOT NULL, 
	endpoint VARCHAR(32) NOT NULL, 
	project_id VARCHAR(64) NOT NULL, 
	key_id VARCHAR(64) NOT NULL, 
	tier VARCHAR(64) NOT NULL, 
	terms VARCHAR(64) NOT NULL, 
	model TEXT NOT NULL, 
	adapter TEXT, 
	upstream VARCHAR(64), 
	batch_id VARCHAR(64), 
	prompt_tokens BIGINT NOT NULL, 
	cached_tokens BIGINT NOT NULL, 
	completion_tokens BIGINT NOT NULL, 
	generated_tokens BIGINT NOT NULL, 
	trained_tokens BIGINT NOT NULL, 
	ttft_ms FLOAT, 
	latency_ms FLOAT NOT NULL, 
	outcome VARCHAR(16) NOT NULL, 
	cost BIGINT NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE usage_days (
	seq INTEGER NOT NULL, 
	day BIGINT NOT NULL, 
	endpoint VARCHAR(32) NOT NULL, 
	project_id VARCHAR(64) NOT NULL, 
	key_id VARCHAR(64) NOT NULL, 
	tier VARCHAR(64) NOT NULL, 
	terms VARCHAR(64) NOT NULL, 
	model VARCHAR(500) NOT NULL, 
	adapter VARCHAR(500) NOT NULL, 
	upstream VARCHAR(64) NOT NULL, 
	requests BIGINT NOT NULL, 
	prompt_tokens BIGINT NOT NULL, 
	cached_tokens BIGINT NOT NULL, 
	completion_tokens BIGINT NOT NULL, 
	generated_tokens BIGINT NOT NULL, 
	trained_tokens BIGINT NOT NULL, 
	cost BIGINT NOT NULL, 
	PRIMARY KEY (seq), 
	UNIQUE (day, project_id, key_id, tier, terms, endpoint, model, adapter, upstream)
);
CREATE INDEX ix_files_purpose ON files (purpose);
CREATE INDEX ix_jobs_status ON jobs (status);
CREATE INDEX ix_job_events_job_id ON job_events (job_id);
CREATE INDEX ix_job_checkpoints_job_id ON job_checkpoints (job_id);
CREATE INDEX ix_audit_created_at ON audit (created_at);
CREATE INDEX ix_usage_created_at ON usage (created_at);
CREATE INDEX ix_usage_project_id ON usage (project_id);
CREATE INDEX ix_usage_days_day ON usage_days (day);
CREATE INDEX ix_batches_status ON batches (status);
CREATE INDEX ix_batches_project_id ON batches (project_id);
CREATE INDEX ix_keys_project_id ON keys (project_id);
CREATE INDEX ix_files_project_id ON files (project_id);
CREATE INDEX ix_jobs_project_id ON jobs (project_id);
COMMIT;
