"""The declared handlers of `bester up` as child processes: started, watched, started again."""
